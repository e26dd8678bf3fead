"""The storage unit: sessions, mirrors, snapshots, expiry, verification and restores."""
