"""What is stored and what it means. Pure: no I/O and no clock."""
