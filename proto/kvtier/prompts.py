"""A prompt from one message of the contract to another that has the same kinds of it. Pure."""

from kvtier.v1 import describe_pb2, inference_pb2

__all__ = ["copy_prompt"]

Asked = inference_pb2.GenerateRequest | describe_pb2.DescribePromptRequest


def copy_prompt(source: Asked, target: Asked) -> None:
    """Nothing where `source` has none."""
    match source.WhichOneof("prompt"):
        case "chat":
            target.chat.CopyFrom(source.chat)
        case "text":
            target.text = source.text
        case "tokens":
            target.tokens.CopyFrom(source.tokens)
