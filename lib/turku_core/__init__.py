"""Turku: backups for fleets of machines that nobody can reach from outside.

The folders are the parts: ``api`` decides what is due, ``agent`` runs on every machine,
``storage`` keeps the snapshots, ``local`` puts a whole Turku on one machine.
"""

__version__ = "1.0.0"
