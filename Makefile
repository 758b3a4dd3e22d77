.PHONY: demo test
demo: ## set up, start Airflow with AirExecutor, run an example, stay up
	scripts/demo
test: ## set up and run everything that has to pass
	scripts/test
