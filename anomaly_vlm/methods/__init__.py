"""The methods: one folder each; base/ has the common base class and mix-ins, shared/ what several methods use."""
