"""Which device holds which expert: by memory, by speed, and by how often the router asks for it."""
