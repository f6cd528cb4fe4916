"""What nobody set: beside embedded servers it is generated once, and kept in their data folder."""

from __future__ import annotations

from service.embedded import load_or_make_secrets
from service.settings import Settings, key_settings, resolved


def with_generated_secrets(settings: Settings) -> Settings:
    """The settings with every secret that nobody chose; unchanged where no server is embedded. Raises EmbeddedError."""
    if not (settings.embedded_database or settings.embedded_redis):
        return settings
    secrets = load_or_make_secrets(settings.data_dir)
    return resolved(
        settings,
        jwt_secret=None if key_settings(settings) else secrets.jwt_secret,
        agora_app_id=secrets.agora_app_id,
        agora_app_certificate=secrets.agora_app_certificate,
    )
