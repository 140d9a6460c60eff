"""WebShop (Yao et al. 2022) as a native text environment: catalogue, search, pages, actions and reward in one
process."""
