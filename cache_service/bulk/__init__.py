"""The bulk lane's service side: tickets, transfers, the listener and its threads."""
