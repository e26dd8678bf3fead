"""The agent: what runs on every machine that is backed up."""
