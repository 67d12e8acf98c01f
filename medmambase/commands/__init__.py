"""One file for each console command: parse, call, print."""
