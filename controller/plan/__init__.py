"""Plans: what is prescribed, whether it can be delivered here, and how it is cut into passes."""
