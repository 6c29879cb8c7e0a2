"""The base of every method, and mix-ins for families of them."""
