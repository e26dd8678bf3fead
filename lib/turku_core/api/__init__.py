"""The Django application: who may do what, what is due, and the record of every backup."""
