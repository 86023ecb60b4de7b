"""Lists, pages and tables of artifacts, scores and methods: pure functions from what is stored to text and JSON."""
