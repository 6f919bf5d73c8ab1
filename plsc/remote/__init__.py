"""Remote folders by fsspec: s3://, oss://, hdfs:// and what else fsspec knows; read through a local cache."""
