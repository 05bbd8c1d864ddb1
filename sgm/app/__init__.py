"""A page to paint edits in: one loaded model, a recording of every photo; see docs/app.md."""
