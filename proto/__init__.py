"""The wire: ``recommender.proto`` (package ``recserve.v1``) and the code generated from it by ``make proto``."""
