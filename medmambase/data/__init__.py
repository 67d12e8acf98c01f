"""Turn files into batches: ``reading`` decodes any picture, ``manifest`` finds and splits them,
``decoded`` holds them, ``augment`` varies batches, ``phantom`` draws a set to try."""
