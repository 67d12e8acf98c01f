"""Find out what this machine can run, what it lacks, and which command fixes that:
``medmambase-doctor``."""
