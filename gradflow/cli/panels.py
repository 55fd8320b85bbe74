"""`gradflow wandb-panels`: a saved workspace in W&B."""

from gradflow.cli.console import show, show_json
from gradflow.cli.options import OK, Flag


def wandb_panels(
    *, entity: str, project: str = "gradflow", name: str = "gradflow", json: Flag = False
) -> int:
    """Save a W&B workspace: verdict, gradient by depth, norms by stage, seeds as bands.

    Needs wandb-workspaces and a login; --json shows it without a login.

    Parameters
    ----------
    entity
        Who owns the project: a user or a team.
    project
        The project of the runs, like `--project` of train.
    name
        The name of the workspace.
    json
        Print the workspace as one JSON object on stdout, and send nothing.
    """
    from gradflow.present.tracking.start import check_installed

    check_installed("wandb_workspaces", "wandb-workspaces>=0.4.8", "`gradflow wandb-panels`")
    from gradflow.present.tracking import wandb_workspace

    page = wandb_workspace.workspace(entity, project, name)
    if json:
        show_json(wandb_workspace.to_json(page))
    else:
        show(f"workspace  {wandb_workspace.save(page)}")
    return OK
