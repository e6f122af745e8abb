# The README's commands in a container. Written without a Docker engine at hand: it has never been built.
FROM python:3.11-slim-bookworm
RUN apt-get update && apt-get install -y --no-install-recommends make git g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /chinchilla
COPY . .
RUN make .venv/core
ENV PATH="/chinchilla/.venv/bin:$PATH"
EXPOSE 8000
CMD ["make", "demo"]
