"""How the administration site writes times, by language."""
