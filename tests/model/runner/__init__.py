"""Juju's hook protocol for charms on machines of one host; README.md beside this has its rules.

It knows nothing of the charms that it runs.
"""
