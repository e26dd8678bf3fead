"""What Turku's three charms share: the Juju side of things that all of them do.

Here, and in the charms, is the only place that knows `ops`; what Turku itself does is in
`turku_core`.
"""
