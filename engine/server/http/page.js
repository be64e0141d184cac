for (const form of document.forms) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const [button, said, shown] = ["button", "output", "pre"].map((name) => form.querySelector(name));
    button.disabled = true;
    const start = performance.now();
    try {
      const answer = await fetch(form.dataset.path, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: form.querySelector("textarea").value,
      });
      const text = await answer.text();
      said.textContent = `${answer.status} · ${(performance.now() - start).toFixed(1)} ms · ` +
        `request ${answer.headers.get("x-request-id") ?? "without id"}`;
      said.dataset.good = answer.ok ? "yes" : "no";
      shown.textContent = JSON.stringify(JSON.parse(text), null, 1);
    } catch (error) {
      said.textContent = String(error);
      said.dataset.good = "no";
      shown.textContent = "";
    } finally {
      shown.hidden = !shown.textContent;
      button.disabled = false;
    }
  });
}
