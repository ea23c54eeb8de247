"""What `training/evaluate.py` measures: the bound (`bound`), samples (`samples`, `distances`, `memorisation`, `classes`), by
whose features (`extractors`, `reference`), in resumable pieces (`work`), and how it is told (`report`, `plots`)."""
