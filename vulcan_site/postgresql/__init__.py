"""Django's PostgreSQL, with a bound on how many threads wait for a connection."""
