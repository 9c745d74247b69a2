"""The lab: brokers, databases, processes, commands."""
