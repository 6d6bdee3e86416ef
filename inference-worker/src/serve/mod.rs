//! HTTP: the public OpenAI port and the internal port.
