"""What benchmarks need of a ledger, as processes of their own."""
