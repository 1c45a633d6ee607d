"""The HTTP API: views validate, call one function of the registry or `services`, and respond."""
