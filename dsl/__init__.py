"""Language: text to typed script. Imports lark and nothing else of ours."""
