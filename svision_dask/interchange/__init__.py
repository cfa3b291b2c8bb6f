"""Models as other programs take them: ONNX, torch.export, BioImage.IO."""
