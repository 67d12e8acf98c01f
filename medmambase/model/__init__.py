"""Build, load and save the networks: ``network`` reads as the architecture figure, ``layers``
holds its boxes, ``frozen`` the plan for prediction, ``weights`` the files."""
