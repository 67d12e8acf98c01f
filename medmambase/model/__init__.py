"""The networks: ``network`` reads as the architecture figure, ``layers`` holds its boxes,
``weights`` its files."""
