"""The Ray Serve application: an endpoint for single cells, archive runs, and a web page on top."""
