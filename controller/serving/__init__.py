"""The room process: a room that stands by, takes commands, treats, and stands by again."""
