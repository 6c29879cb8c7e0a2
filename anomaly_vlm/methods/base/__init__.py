"""The base of every method, and mix-ins for families of them."""

# Set by the console script for commands that only predict, see `module`.
WITHOUT_LIGHTNING = "ANOMALY_VLM_WITHOUT_LIGHTNING"
