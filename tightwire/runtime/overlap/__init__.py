"""What lets the next forward begin before every mean has arrived."""
