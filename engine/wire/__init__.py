"""Between the engine's nouns and the wire's messages; shared by the server and the client."""
