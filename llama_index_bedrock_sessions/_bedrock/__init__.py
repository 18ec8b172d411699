"""Everything that meets AWS: the session operations, their errors, media in S3, and the directories."""
