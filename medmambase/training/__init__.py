"""Training: ``loop`` is the one visible loop, ``run_folder`` is where its results lie."""
