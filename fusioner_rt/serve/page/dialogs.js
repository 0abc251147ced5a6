/** The two dialogs: the keys, and the token. */

/**
 * @param {HTMLDialogElement} dialog
 * @param {HTMLElement} rows
 * @param {[string, string][]} keys and what they do
 */
export function fillHelp(dialog, rows, keys) {
  for (const [names, does] of keys) {
    const row = document.createElement("tr");
    const head = document.createElement("th");
    head.scope = "row";
    for (const name of names.split(" ")) {
      const key = document.createElement("kbd");
      key.textContent = name;
      head.append(key, " ");
    }
    const cell = document.createElement("td");
    cell.textContent = does;
    row.append(head, cell);
    rows.append(row);
  }
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
}

/**
 * @param {{dialog: HTMLDialogElement, value: HTMLInputElement, said: HTMLElement, cancel: HTMLElement}} parts
 * @returns {(again: boolean) => Promise<string | null>} asks once, however many wait for the answer; null where it is declined
 */
export function tokenDialog({ dialog, value, said, cancel }) {
  /** @type {Promise<string | null> | null} */
  let asking = null;
  cancel.addEventListener("click", () => dialog.close(""));
  return (again) => {
    asking ??= new Promise((done) => {
      said.textContent = again ? "That was not the right one." : "It is kept until this page is closed.";
      dialog.returnValue = "";
      dialog.addEventListener(
        "close",
        () => {
          done(dialog.returnValue === "given" ? value.value.trim() : null);
          value.value = "";
          asking = null;
        },
        { once: true },
      );
      dialog.showModal();
    });
    return asking;
  };
}
