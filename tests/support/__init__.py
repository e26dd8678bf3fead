"""What tests of several parts share. A test imports it as `from tests.support...`."""
