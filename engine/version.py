"""The version of loredit, for the records of runs."""

VERSION = "0.1.0"
