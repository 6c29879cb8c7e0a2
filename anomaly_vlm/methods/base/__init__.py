"""The base of every method, and mix-ins for families of them."""

WITHOUT_LIGHTNING = (
    "ANOMALY_VLM_WITHOUT_LIGHTNING"  # set by the console script for commands that only predict, see `module`
)
