"""The network of a placement problem, from measurements: links, access profiles, and promises that stop holding."""
