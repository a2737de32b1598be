"""Models over HTTP: a server that speaks OpenAI's API, and the page of `tinylm play`."""
