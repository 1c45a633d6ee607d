"""Django's PostgreSQL backend with a bound on the threads that wait for a connection."""
