"""The teacher signal: what teachers say about every token of an answer, stored once and read without configuration."""
