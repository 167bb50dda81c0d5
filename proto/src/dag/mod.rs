//! DAGs: the dag-pb codec, UnixFS file nodes, chunking, building and walking; CAR files.
