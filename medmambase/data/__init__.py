"""From files to batches: ``images`` reads any picture, ``folders`` finds and splits them,
``augment`` varies batches, ``phantom`` draws a set to try."""
