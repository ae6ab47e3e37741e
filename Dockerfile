# Prediction without PyTorch:
#   docker build -t nightscan .
#   docker run --rm -v "$PWD:/data" nightscan --model_path /data/efficientnet_best.onnx --input /data/recordings --output /data/results.json
# M4A, AAC and WMA need ffmpeg: add it with apt-get, or convert them.
FROM python:3.12-slim
WORKDIR /nightscan
COPY requirements-predict.txt .
RUN pip install --no-cache-dir -r requirements-predict.txt
COPY models/*.py models/
COPY utils utils
COPY scripts scripts
RUN useradd --create-home nightscan
USER nightscan
ENTRYPOINT ["python", "scripts/predict_efficientnet.py"]
